<?php
// Whatever is asked for.
switch ($_GET['do']) {
    case 'gone': http_response_code(410); echo 'no more'; break;
    case 'away': header('Location: /index.php'); break;
    case 'none': http_response_code(204); break;
    case 'exit': echo 'partly'; exit(3);
    case 'error': error_log('a complaint of the script'); echo 'said'; break;
    case 'fatal': undefined_function(); break;
    case 'silent': sleep(20); break;
}
