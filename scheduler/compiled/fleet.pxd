cimport cython
from scheduler.compiled.window cimport Window
from scheduler.compiled.limits cimport (
    ABSENT, HANDED_BACK, LARGEST_BATCH, LIVE, LONGEST, MOST_GPUS, MOST_MODELS, PRIORITIES, SLOTS, TYPES,
)


cdef class Fleet(Window):
    cpdef add_model(self, long long model, long long slo_ns, long long max_batch)
    cpdef bint has_model(self, long long model) noexcept
    cpdef bint has_gpu(self, long long gpu) noexcept
    cdef _serve_all(self)
    @cython.locals(alike=bint)
    cdef _serve_one(self, long long model)
    cdef _changed(self, long long now, bint everything)
