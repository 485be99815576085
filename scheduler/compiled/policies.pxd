cdef class Policy:
    cdef public str name

    cpdef long long calm(self, long long target, long long most) noexcept
    cpdef long long opens(self, long long now, long long size, long long target, bint full, long long frontrun, long long latest, long long arrived) noexcept

cdef class Deferred(Policy):
    pass

cdef class Eager(Policy):
    pass

cdef class Target(Policy):
    pass

cdef class Latest(Policy):
    pass

cdef class Timeout(Policy):
    cdef public long long wait_ns
    cdef public long long preferred

cdef class Adaptive(Policy):
    cdef public double dial
