"""How wrong a reconstruction is, one file a term, and the objective that weighs them."""
