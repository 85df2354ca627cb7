"""Plans by boundaries in forward: save what crosses a boundary, recompute the segments in between."""
