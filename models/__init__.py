"""Models over `zojax.ops`: a reader learns an architecture from one file."""
