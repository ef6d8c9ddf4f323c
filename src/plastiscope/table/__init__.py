"""One table of everything that is known of each sample of a run, joined by id; and what is made of it."""
