"""Lightning callbacks for training under masks, and the Hydra callback that shows and reports a sweep."""
