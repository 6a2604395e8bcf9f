"""Why pictures are blurred: predicted before the first step, named afterwards, with the command to run next."""
