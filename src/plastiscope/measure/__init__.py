"""Pure maths, tensors in, numbers out: no files, no config, no logging."""
