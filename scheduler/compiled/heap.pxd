cdef class Heap:
    cdef public long long size
    cdef public long long[::1] ids
    cdef public long long[::1] keys
    cdef public long long[::1] place

    cpdef reserve(self, long long capacity)
    cpdef bint has(self, long long ident) noexcept
    cpdef void put(self, long long ident, long long key) noexcept
    cpdef void discard(self, long long ident) noexcept
    cdef void _down(self, long long i, long long ident, long long key) noexcept
