"""plastiscope: an instrument for watching a network lose, or keep, its ability to learn."""
