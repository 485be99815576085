from scheduler.compiled.limits cimport SAMPLES, SAMPLE_NS

cdef class Meter:
    cdef public long long lanes
    cdef public int[::1] counts
    cdef public long long[::1] before
    cdef public long long[::1] total
    cdef public long long[::1] sample
    cdef public long long[::1] first

    cpdef add_lane(self)
    cpdef void roll(self, long long lane, long long sample, long long ever) noexcept
    cpdef long long window_ns(self, long long lane) noexcept
    cpdef void clear(self, long long lane) noexcept
