"""The reproduction of the ConServe paper (arXiv 2606.01839), and what becomes of it elsewhere."""
