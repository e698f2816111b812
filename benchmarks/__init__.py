"""Speed beside peer libraries: candidates interleaved in one run, so that only their ratios matter."""
