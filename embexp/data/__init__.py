"""The one form of data: queries, passages and who answers whom, cut by document and held against leaks."""
