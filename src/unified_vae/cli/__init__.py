"""Words in, words out: the commands of the two doors, the display of runs, tables and progress."""
