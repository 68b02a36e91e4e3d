/* Tests of the data path's parts, for ea_self_test: NULL, or what is wrong. */
#ifndef EA_SELF_TEST_H
#define EA_SELF_TEST_H

const char *ea_test_ring(void);
const char *ea_test_window(void);
const char *ea_test_tables(void);
const char *ea_test_offload(void);
const char *ea_test_passage(void);

#endif
