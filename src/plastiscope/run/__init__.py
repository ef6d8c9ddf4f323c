"""The run folder: layout, atomic writing, logs, checkpoint, snapshots, W&B, status."""
