cdef long long SMALLEST_RING

cdef class Queues:
    cdef public long long lanes
    cdef public long long[::1] base
    cdef public long long[::1] mask
    cdef public long long[::1] head
    cdef public long long[::1] count
    cdef public long long[::1] first
    cdef public long long[::1] last
    cdef public long long[::1] finish
    cdef public unsigned long long[::1] key
    cdef public long long _used
    cdef public dict _spare

    cpdef long long add_lane(self) except -1
    cpdef void push(self, long long lane, long long finish, unsigned long long key) except *
    cpdef void pop(self, long long lane, long long n) noexcept
    cpdef long long at(self, long long lane, long long i) noexcept
    cpdef grow(self, long long lane)
