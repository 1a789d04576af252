"""Reading files safely: pickles, downloads, CSV rows, arrays."""
