cimport cython

@cython.locals(
    batch="const long long[::1]", gpu="const unsigned int[::1]", model="const unsigned int[::1]",
    size="const unsigned int[::1]", i="Py_ssize_t", row="long long",
)
cpdef bint fits(tuple columns, const long long[::1] known, const long long[:, ::1] latency, const unsigned char[::1] here) except -1

@cython.locals(
    batch="const long long[::1]", gpu="const unsigned int[::1]", model="const unsigned int[::1]",
    exec_at="const long long[::1]", size="const unsigned int[::1]", at="long long", shard="long long",
    now="long long", due="long long", slot="long long", place="long long", earliest="long long",
    i="Py_ssize_t", which="unsigned int", begin="long long", many="unsigned int", row="long long",
    done="long long",
)
cpdef long long start(
    tuple columns, const long long[::1] known, const long long[:, ::1] latency, long long[::1] free_at,
    long long[::1] end, long long[:, ::1] fields, tuple given,
) except? -1
