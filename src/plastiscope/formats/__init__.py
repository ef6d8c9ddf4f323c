"""Files of other people's programs: read with care, written on request."""
