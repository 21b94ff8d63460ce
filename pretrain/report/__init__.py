"""The page that a run or a comparison of runs leaves behind."""
