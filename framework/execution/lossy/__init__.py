"""What the torch executor does for policies that lose something: narrowed contexts, packed fronts, selected pages."""
