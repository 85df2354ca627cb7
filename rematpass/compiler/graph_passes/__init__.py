"""Every rewrite of an fx graph, one file each; ``pipeline`` lists them in the order in which they run."""
