"""Files below directories that user code can write to; standard library only, because kernels load it too."""
