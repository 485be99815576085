cimport cython
from scheduler.compiled cimport plain
from scheduler.compiled.limits cimport (
    APART, BASE, FIELDS, FIRST, HEAD, LARGE_RING, LAST, MASK, MOST_FETCHED, PLAIN, SMALLEST_RING, STOP, TAIL, UNTIL,
)


cdef class Queues:
    cdef public long long lanes
    cdef public long long moves
    cdef public long long[::1] record
    cdef public long long[::1] before
    cdef public unsigned long long[::1] slab
    cdef public long long _used
    cdef public dict _spare

    cpdef long long add_lane(self) except -1
    cpdef long long count(self, long long lane) noexcept
    cpdef long long ever(self, long long lane) noexcept
    @cython.locals(other="long long")
    cpdef void push(self, long long lane, long long deadline, unsigned long long key) except *
    cpdef void pop(self, long long lane, long long n) except *
    cpdef long long at(self, long long lane, long long i) noexcept
    @cython.locals(i="long long", end="long long", head="long long", mask="long long", base="long long")
    cpdef void fetch(self, long long lane) noexcept
    @cython.locals(
        slot="long long", i="long long", head="long long", mask="long long", base="long long", first="long long",
        some="long long",
    )
    cpdef void copy(self, long long lane, long long n, unsigned long long[::1] key, unsigned long long[::1] deadline, long long to) noexcept
    @cython.locals(start="long long", i="long long", at="long long", to="long long")
    cdef _move(self, long long lane, long long size)
