"""Many runs as one table and as curves over seeds; published trees of results, read and written."""
