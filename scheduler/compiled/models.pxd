from scheduler.compiled.limits cimport TYPES

cdef class Models:
    cdef public long long capacity
    cdef public signed char[::1] known
    cdef public signed char[::1] draining
    cdef public long long[::1] slo
    cdef public long long[::1] max_batch
    cdef public long long[::1] table
    cdef public long long[::1] latency
    cdef public dict _place
    cdef public dict _content
    cdef public dict _users
    cdef public dict _spare

    cpdef add(self, long long model, long long slo_ns, long long max_batch)
    cpdef set_table(self, long long model, long long gpu_type, latency_ns)
    cdef _release(self, long long entry)
    cpdef long long fit(self, long long at, long long most, long long per_request, long long budget, long long hard) noexcept
    cpdef long long target(self, long long model, long long at, long long per_request, long long budget, long long count, long long window) noexcept
