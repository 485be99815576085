cimport cython

cdef bint PLAIN
cdef long long SMALLEST_RING
cdef long long LARGE_RING
cdef long long FIELDS
cdef long long UNTIL
cdef long long STOP
cdef long long TAIL
cdef long long LAST
cdef long long BASE
cdef long long MASK
cdef long long HEAD
cdef long long FIRST

cdef class Queues:
    cdef public long long lanes
    cdef public long long moves
    cdef public long long[::1] record
    cdef public unsigned long long[::1] slab
    cdef public long long _used
    cdef public dict _spare

    cpdef long long add_lane(self) except -1
    cpdef long long count(self, long long lane) noexcept
    @cython.locals(other="long long")
    cpdef void push(self, long long lane, long long deadline, unsigned long long key) except *
    cpdef void pop(self, long long lane, long long n) except *
    cpdef long long at(self, long long lane, long long i) noexcept
    @cython.locals(slot="long long", i="long long", head="long long", mask="long long", base="long long")
    cpdef void copy(self, long long lane, long long n, unsigned long long[::1] key, unsigned long long[::1] deadline, long long to) noexcept
    @cython.locals(start="long long", i="long long", at="long long", to="long long")
    cdef _move(self, long long lane, long long size)
