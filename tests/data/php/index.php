<?php
// What a script sees of its request, a line for each variable.
header('Content-Type: text/plain');
header('Set-Cookie: a=1', false);
header('Set-Cookie: b=2', false);
foreach (['GATEWAY_INTERFACE', 'REQUEST_METHOD', 'REQUEST_URI', 'QUERY_STRING', 'SCRIPT_NAME', 'SCRIPT_FILENAME', 'DOCUMENT_ROOT',
    'PATH_INFO', 'PHP_SELF', 'SERVER_NAME', 'SERVER_PORT', 'SERVER_PROTOCOL', 'REMOTE_ADDR', 'HTTPS', 'HTTP_HOST', 'HTTP_X_A', 'HTTP_PROXY',
    'CONTENT_TYPE', 'CONTENT_LENGTH', 'APP_ENV', 'PHP_AUTH_USER'] as $name) {
    echo $name, '=', $_SERVER[$name] ?? '-', "\n";
}
