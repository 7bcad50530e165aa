"""The benchmark: every policy on the same episodes, judged alike."""
