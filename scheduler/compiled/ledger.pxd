cimport cython

@cython.locals(
    model="const long long[::1]", priority="const long long[::1]", gpu="const long long[::1]",
    size="const long long[::1]", batch="const long long[::1]", finish_at="const long long[::1]",
    key="const unsigned long long[::1]", deadline="const long long[::1]",
    row_batch="long long[::1]", row_gpu="long long[::1]", row_model="long long[::1]",
    row_priority="unsigned char[::1]", row_size="long long[::1]", row_finish_at="long long[::1]",
    row_first_due="long long[::1]", row_start="long long[::1]", mask="long long", ring="long long",
    done="long long", i="Py_ssize_t", many="long long", first="long long", k="long long", here="long long",
    place="long long", row="long long",
)
cpdef long long record(tuple d, tuple rows, unsigned long long[::1] keys, long long[::1] dues, long long head) except -1

@cython.locals(
    batch="const unsigned long long[::1]", gpu="const unsigned int[::1]", finished="const long long[::1]",
    row_batch="long long[::1]", row_gpu="long long[::1]", row_model="long long[::1]",
    row_size="long long[::1]", row_finish_at="long long[::1]", row_first_due="long long[::1]",
    row_start="long long[::1]", mask="long long", ring="long long", n="long long", found="long long",
    strange="long long", i="Py_ssize_t", number="unsigned long long", row="long long", good="long long",
    due="long long", start="long long", k="long long",
)
cpdef long long take(tuple came, long long result, tuple rows, long long[::1] dues, long long[::1] taken, long long[::1] odd) except -1
