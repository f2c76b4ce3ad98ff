"""From a fitted direction to a version that is live: durable storage, its pointer and its audit log."""
