"""The landscape suite: settings, work that is shared out and resumed, files; for any network, loss and data."""
