"""Config group `analysis`: one file each; glue only: get data, call measures, save, return numbers."""
