"""Looking at stored runs: their outputs, analyses, maps, and their weights into a store and out of it."""
