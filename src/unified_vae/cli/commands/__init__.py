"""One file a verb on finished models: words to a request, the result to lines."""
