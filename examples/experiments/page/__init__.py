"""docs/results.md, written from the records in docs/results: nothing in it is typed by hand."""
