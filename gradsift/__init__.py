"""The application: command line, demo, report."""
