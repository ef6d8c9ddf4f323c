"""Config group `data`: where samples come from, and the transforms of their batches."""
