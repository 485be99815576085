cimport cython
from scheduler.compiled cimport plain


cdef class Numbers:
    cdef public long long size
    cdef public long long capacity
    cdef public long long levels
    cdef public long long[::1] start
    cdef public unsigned long long[::1] words

    cpdef reserve(self, long long capacity)
    cpdef list held(self)
    cpdef bint has(self, long long number) noexcept
    @cython.locals(at="long long", old="unsigned long long", bit="unsigned long long", level="long long", place="long long")
    cpdef void put(self, long long number) noexcept
    @cython.locals(at="long long", left="unsigned long long", bit="unsigned long long", level="long long", place="long long")
    cpdef void discard(self, long long number) noexcept
    @cython.locals(at="long long", level="long long")
    cpdef long long first(self) noexcept
    @cython.locals(at="long long", word="unsigned long long", level="long long", place="long long")
    cpdef long long next(self, long long number) noexcept
