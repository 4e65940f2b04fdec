#pragma once

#include <cstddef>

namespace conclave {

// Hints to the kernel about the pages of a mapped file. Neither changes what is read; a kernel that
// does not know them answers with an error, which costs speed only.

// Maps a range in one call, reading from disk what the page cache lacks, instead of a fault every
// few pages. Blocks until it is there.
void PopulatePages(const void* data, size_t bytes);

// Takes the range out of this process's memory: its whole pages, since others may share the ones
// at its ends. The page cache keeps them while memory is free, and the next read maps them again.
void ReleasePages(const void* data, size_t bytes);

}  // namespace conclave
