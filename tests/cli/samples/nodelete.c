#include <molt/module.h>

MOLT_MODULE("nodelete", "1", "MIT", "")
