"""One module per kind of source; each has a `load` that returns Splits. Named by the files in conf/dataset."""
