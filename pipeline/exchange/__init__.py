"""Export of a build to other tools, import of their masks into a build."""
