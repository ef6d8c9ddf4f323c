"""The configs of plastiscope: config.yaml, and one folder per group."""
