<?php
// A front controller: it looks at the address, whatever script that would be.
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
if ($path === '/missing') http_response_code(404);
echo "front $path of {$_SERVER['SCRIPT_NAME']}";
