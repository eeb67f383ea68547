"""Filter reruns over a build, and what differs between two filters."""
