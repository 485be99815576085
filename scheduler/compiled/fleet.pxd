cimport cython
from scheduler.compiled.window cimport Window

cdef long long ABSENT
cdef long long LARGEST_BATCH
cdef long long LIVE
cdef long long LONGEST
cdef long long MOST_GPUS
cdef long long MOST_MODELS
cdef long long PRIORITIES
cdef long long SLOTS
cdef long long TYPES
cdef long long HANDED_BACK

cdef class Fleet(Window):
    cpdef add_model(self, long long model, long long slo_ns, long long max_batch)
    cpdef bint has_model(self, long long model) noexcept
    cpdef bint has_gpu(self, long long gpu) noexcept
    cdef _serve_all(self)
    @cython.locals(alike=bint)
    cdef _serve_one(self, long long model)
    cdef _changed(self, long long now, bint everything)
