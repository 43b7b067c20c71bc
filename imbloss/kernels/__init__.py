"""The Triton kernels, one file a traversal as in csrc. Imported when first needed: nothing else needs triton."""
