"""The worker's own logic: it knows no HTTP and no backend."""
