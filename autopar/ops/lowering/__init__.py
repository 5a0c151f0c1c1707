"""How nodes of a program become nodes of a local graph: `emit` does it, the other modules say what it emits for which ops."""
