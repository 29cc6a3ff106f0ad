"""Success, measured: episodes in process, intervals, tables, films."""
